export interface Session {
  sessionId: string;
  businessId: string;
  userId: string;
  locationId: string;
  sessionType: string;
  status: string;
  title: string | null;
  metadata: Record<string, unknown>;
  messageCount: number;
  version: number;
  createdAt: string | null;
  updatedAt: string | null;
  lastActivityAt: string | null;
  expiresAt: string | null;
  endedAt: string | null;
  endReason: string | null;
}

const iso = (ms: string | null | undefined) => (ms ? new Date(Number(ms)).toISOString() : null);

export function toSession(fields: Record<string, string>): Session {
  return {
    sessionId: fields.sessionId,
    businessId: fields.businessId,
    userId: fields.userId,
    locationId: fields.locationId,
    sessionType: fields.sessionType,
    status: fields.status,
    title: fields.title ?? null,
    metadata: JSON.parse(fields.metadata) as Record<string, unknown>,
    messageCount: Number(fields.messageCount),
    version: Number(fields.version),
    createdAt: iso(fields.createdAt),
    updatedAt: iso(fields.updatedAt),
    lastActivityAt: iso(fields.lastActivityAt),
    expiresAt: iso(fields.expiresAt),
    endedAt: iso(fields.endedAt),
    endReason: fields.endReason ?? null,
  };
}
