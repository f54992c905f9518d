// get by id and get-or-create as a Fastify user writes them: schemas for input and output, the script as an ioredis command.
import { readFileSync } from 'node:fs';
import { randomUUID } from 'node:crypto';
import Fastify from 'fastify';
import Redis from 'ioredis';

const [port, redisUrl, scriptFile] = process.argv.slice(2);
const lifecycle = { idleMs: 30 * 60_000, maxLifetimeMs: 24 * 3600_000, retentionMs: 30 * 24 * 3600_000, resolutionMs: 60_000 };

const redis = new Redis(redisUrl);
redis.defineCommand('getOrCreate', { numberOfKeys: 4, lua: readFileSync(scriptFile, 'utf8') });

const fastify = Fastify({ logger: false, genReqId: () => randomUUID() });

const identifier = { type: 'string', minLength: 1, maxLength: 128 };
const time = { type: 'string' };
const session = {
  type: 'object',
  properties: {
    sessionId: { type: 'string' },
    businessId: identifier,
    userId: identifier,
    locationId: identifier,
    sessionType: identifier,
    status: { type: 'string' },
    title: { type: 'string', nullable: true },
    metadata: { type: 'object', additionalProperties: true },
    messageCount: { type: 'integer' },
    version: { type: 'integer' },
    createdAt: time,
    updatedAt: time,
    lastActivityAt: time,
    expiresAt: time,
    endedAt: { ...time, nullable: true },
    endReason: { type: 'string', nullable: true },
  },
};

const iso = (ms) => (ms ? new Date(Number(ms)).toISOString() : null);

const toSession = (fields) => ({
  sessionId: fields.sessionId,
  businessId: fields.businessId,
  userId: fields.userId,
  locationId: fields.locationId,
  sessionType: fields.sessionType,
  status: fields.status,
  title: fields.title ?? null,
  metadata: JSON.parse(fields.metadata),
  messageCount: Number(fields.messageCount),
  version: Number(fields.version),
  createdAt: iso(fields.createdAt),
  updatedAt: iso(fields.updatedAt),
  lastActivityAt: iso(fields.lastActivityAt),
  expiresAt: iso(fields.expiresAt),
  endedAt: iso(fields.endedAt),
  endReason: fields.endReason ?? null,
});

// Names and values in turn, as the script replies them.
const fromPairs = (flat) => {
  const fields = {};
  for (let index = 0; index < flat.length; index += 2) fields[flat[index]] = flat[index + 1];
  return fields;
};

fastify.get('/api/sessions/:sessionId', { schema: { response: { 200: session } } }, async (request, reply) => {
  const fields = await redis.hgetall(`peer:s:${request.params.sessionId}`);
  if (!fields.sessionId) return reply.code(404).send({ message: 'session not found' });
  return toSession(fields);
});

const body = {
  type: 'object',
  required: ['businessId', 'userId'],
  additionalProperties: false,
  properties: {
    businessId: identifier,
    userId: identifier,
    locationId: { ...identifier, default: 'L0100001' },
    sessionType: { ...identifier, default: 'general' },
    metadata: { type: 'object', default: {} },
  },
};

fastify.post('/api/sessions', { schema: { body, response: { '2xx': session } } }, async (request, reply) => {
  const { businessId, userId, locationId, sessionType, metadata } = request.body;
  const id = randomUUID();
  const now = Date.now();
  const [tag, ...values] = await redis.getOrCreate(
    `peer:a:${businessId}:${userId}`, `peer:h:${businessId}:${userId}`, `peer:b:${businessId}`, `peer:s:${id}`,
    'peer:', id, now, lifecycle.idleMs, lifecycle.maxLifetimeMs, lifecycle.retentionMs, lifecycle.resolutionMs, 'return', 4,
    businessId, userId, '', 'locationId', locationId, 'sessionType', sessionType,
    'metadata', JSON.stringify(metadata),
  );
  if (tag === 'resumed') return toSession(fromPairs(values));
  reply.code(201);
  return toSession(await redis.hgetall(`peer:s:${id}`));
});

await fastify.listen({ host: '127.0.0.1', port: Number(port) });
