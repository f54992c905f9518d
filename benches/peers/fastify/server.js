// Sessions and their messages as a Fastify user writes them: schemas for input and output, the script as an ioredis
// command, messages as a list of JSON that MULTI appends to and trims.
import { readFileSync } from 'node:fs';
import { randomUUID } from 'node:crypto';
import Fastify from 'fastify';
import Redis from 'ioredis';

const [port, redisUrl, scriptFile] = process.argv.slice(2);
const lifecycle = { idleMs: 30 * 60_000, retentionMs: 30 * 24 * 3600_000 };

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
    'peer:', id, now, 'return', businessId, userId, '', 'locationId', locationId, 'sessionType', sessionType,
    'metadata', JSON.stringify(metadata),
  );
  if (tag === 'resumed') return toSession(fromPairs(values));
  reply.code(201);
  return toSession(await redis.hgetall(`peer:s:${id}`));
});

const message = {
  type: 'object',
  required: ['role', 'content'],
  additionalProperties: false,
  properties: {
    messageId: identifier,
    role: { type: 'string', enum: ['user', 'assistant', 'system', 'tool'] },
    content: {},
    metadata: { type: 'object' },
  },
};
const storedMessage = {
  type: 'object',
  properties: {
    seq: { type: 'integer' },
    createdAt: time,
    sessionId: { type: 'string' },
    messageId: { type: 'string' },
    role: { type: 'string' },
    content: {},
    metadata: { type: 'object', additionalProperties: true },
  },
};
const newMessages = { anyOf: [message, { type: 'array', items: message, minItems: 1, maxItems: 100 }] };
const storedMessages = { anyOf: [storedMessage, { type: 'array', items: storedMessage }] };
const messagesKept = 10_000;

// Not atomic: between the read and MULTI another caller may take the same seq.
fastify.post(
  '/api/sessions/:sessionId/messages',
  { schema: { body: newMessages, response: { 201: storedMessages } } },
  async (request, reply) => {
    const { sessionId } = request.params;
    const [status, expiresAt, count] = await redis.hmget(`peer:s:${sessionId}`, 'status', 'expiresAt', 'messageCount');
    const now = Date.now();
    if (!status) return reply.code(404).send({ message: 'session not found' });
    if (status !== 'active' || now >= Number(expiresAt)) {
      return reply.code(409).send({ message: 'session is not active' });
    }
    const isArray = Array.isArray(request.body);
    const stored = (isArray ? request.body : [request.body]).map((message, index) => ({
      seq: Number(count) + index + 1,
      createdAt: iso(now),
      sessionId,
      messageId: message.messageId ?? randomUUID(),
      role: message.role,
      content: message.content,
      metadata: message.metadata ?? {},
    }));
    const expiry = now + lifecycle.idleMs;
    await redis
      .multi()
      .rpush(`peer:m:${sessionId}`, ...stored.map((message) => JSON.stringify(message)))
      .ltrim(`peer:m:${sessionId}`, -messagesKept, -1)
      .pexpireat(`peer:m:${sessionId}`, expiry + lifecycle.retentionMs)
      .hset(`peer:s:${sessionId}`, {
        messageCount: Number(count) + stored.length,
        lastActivityAt: now,
        expiresAt: expiry,
      })
      .exec();
    return reply.code(201).send(isArray ? stored : stored[0]);
  },
);

const page = {
  type: 'object',
  properties: { limit: { type: 'integer', minimum: 1, maximum: 1000, default: 50 } },
};

fastify.get(
  '/api/sessions/:sessionId/messages',
  { schema: { querystring: page, response: { 200: { type: 'array', items: storedMessage } } } },
  async (request, reply) => {
    const { sessionId } = request.params;
    const texts = await redis.lrange(`peer:m:${sessionId}`, -request.query.limit, -1);
    if (texts.length === 0 && !(await redis.exists(`peer:s:${sessionId}`))) {
      return reply.code(404).send({ message: 'session not found' });
    }
    return texts.map((text) => JSON.parse(text));
  },
);

await fastify.listen({ host: '127.0.0.1', port: Number(port) });
