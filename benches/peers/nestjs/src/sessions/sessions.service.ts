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

// Names and values in turn, as the script replies them.
function fromPairs(flat: string[]): Record<string, string> {
  const fields: Record<string, string> = {};
  for (let index = 0; index < flat.length; index += 2) {
    fields[flat[index]] = flat[index + 1];
  }
  return fields;
}

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
      businessId, userId, '', 'locationId', locationId, 'sessionType', sessionType,
      'metadata', JSON.stringify(metadata),
    );
    if (tag === 'resumed') {
      return { created: false, session: toSession(fromPairs(values)) };
    }
    return { created: true, session: await this.findOne(id) };
  }
}
