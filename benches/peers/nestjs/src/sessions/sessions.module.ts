import { readFileSync } from 'node:fs';
import { Module } from '@nestjs/common';
import Redis from 'ioredis';
import { SessionsController } from './sessions.controller';
import { REDIS, SessionsService } from './sessions.service';

@Module({
  controllers: [SessionsController],
  providers: [
    SessionsService,
    {
      provide: REDIS,
      useFactory: () => {
        const [redisUrl, scriptFile] = process.argv.slice(3);
        const redis = new Redis(redisUrl);
        redis.defineCommand('getOrCreate', { numberOfKeys: 4, lua: readFileSync(scriptFile, 'utf8') });
        return redis;
      },
    },
  ],
})
export class SessionsModule {}
