export interface Message {
  seq: number;
  createdAt: string;
  sessionId: string;
  messageId: string;
  role: string;
  content: unknown;
  metadata: Record<string, unknown>;
}
