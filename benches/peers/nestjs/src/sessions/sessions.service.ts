import { randomUUID } from 'node:crypto';
import { ConflictException, Inject, Injectable, NotFoundException } from '@nestjs/common';
import type Redis from 'ioredis';
import type { CreateMessageDto } from './create-message.dto';
import type { CreateSessionDto } from './create-session.dto';
import type { Message } from './message';
import { Session, toSession } from './session';

export const REDIS = Symbol('REDIS');

type SessionRedis = Redis & { getOrCreate(...args: (string | number)[]): Promise<string[]> };

const lifecycle = {
  idleMs: 30 * 60_000,
  retentionMs: 30 * 24 * 3600_000,
};
const messagesKept = 10_000;

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
      'peer:', id, Date.now(), 'return', businessId, userId, '', 'locationId', locationId, 'sessionType', sessionType,
      'metadata', JSON.stringify(metadata),
    );
    if (tag === 'resumed') {
      return { created: false, session: toSession(fromPairs(values)) };
    }
    return { created: true, session: await this.findOne(id) };
  }

  async listMessages(sessionId: string, limit: number): Promise<Message[]> {
    const texts = await this.redis.lrange(`peer:m:${sessionId}`, -limit, -1);
    if (texts.length === 0 && !(await this.redis.exists(`peer:s:${sessionId}`))) {
      throw new NotFoundException('session not found');
    }
    return texts.map((text) => JSON.parse(text) as Message);
  }

  // Not atomic: between the read and MULTI another caller may take the same seq.
  async appendMessages(sessionId: string, messages: CreateMessageDto[]): Promise<Message[]> {
    const [session, list] = [`peer:s:${sessionId}`, `peer:m:${sessionId}`];
    const [status, expiresAt, count] = await this.redis.hmget(session, 'status', 'expiresAt', 'messageCount');
    const now = Date.now();
    if (!status) {
      throw new NotFoundException('session not found');
    }
    if (status !== 'active' || now >= Number(expiresAt)) {
      throw new ConflictException('session is not active');
    }
    const stored = messages.map((message, index) => ({
      seq: Number(count) + index + 1,
      createdAt: new Date(now).toISOString(),
      sessionId,
      messageId: message.messageId ?? randomUUID(),
      role: message.role,
      content: message.content,
      metadata: message.metadata,
    }));
    const expiry = now + lifecycle.idleMs;
    await this.redis
      .multi()
      .rpush(list, ...stored.map((message) => JSON.stringify(message)))
      .ltrim(list, -messagesKept, -1)
      .pexpireat(list, expiry + lifecycle.retentionMs)
      .hset(session, 'messageCount', Number(count) + stored.length, 'lastActivityAt', now, 'expiresAt', expiry)
      .exec();
    return stored;
  }
}
