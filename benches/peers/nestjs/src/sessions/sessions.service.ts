import { randomUUID } from 'node:crypto';
import { Inject, Injectable, NotFoundException } from '@nestjs/common';
import type Redis from 'ioredis';
import type { CreateSessionDto } from './create-session.dto';
import { Session, toSession } from './session';

export const REDIS = Symbol('REDIS');

type SessionRedis = Redis & { getOrCreate(...args: (string | number)[]): Promise<string[]> };

const lifecycle = {
  idleMs: 30 * 60_000,
  maxLifetimeMs: 24 * 3600_000,
  retentionMs: 30 * 24 * 3600_000,
  resolutionMs: 60_000,
};

// The order in which the script answers them.
const FIELDS = [
  'sessionId', 'businessId', 'userId', 'locationId', 'sessionType', 'status', 'title', 'metadata', 'messageCount',
  'version', 'createdAt', 'updatedAt', 'lastActivityAt', 'expiresAt', 'activeUntil', 'endedAt', 'endReason',
];

@Injectable()
export class SessionsService {
  constructor(@Inject(REDIS) private readonly redis: SessionRedis) {}

  async findOne(sessionId: string): Promise<Session> {
    const fields = await this.redis.hgetall(`peer:s:${sessionId}`);
    if (!fields.sessionId) {
      throw new NotFoundException('session not found');
    }
    return toSession(fields);
  }

  async getOrCreate(dto: CreateSessionDto): Promise<{ created: boolean; session: Session }> {
    const { businessId, userId, locationId, sessionType, metadata } = dto;
    const id = randomUUID();
    const [tag, ...values] = await this.redis.getOrCreate(
      `peer:a:${businessId}:${userId}`, `peer:h:${businessId}:${userId}`, `peer:b:${businessId}`, `peer:s:${id}`,
      'peer:', id, Date.now(), lifecycle.idleMs, lifecycle.maxLifetimeMs, lifecycle.retentionMs,
      lifecycle.resolutionMs, 'return', 4,
      'businessId', businessId, 'userId', userId, 'locationId', locationId, 'sessionType', sessionType,
      'metadata', JSON.stringify(metadata),
    );
    if (tag === 'resumed') {
      const fields = Object.fromEntries(FIELDS.map((name, index) => [name, values[index]]));
      return { created: false, session: toSession(fields) };
    }
    return { created: true, session: await this.findOne(id) };
  }
}
