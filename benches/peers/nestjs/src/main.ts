// Sessions and their messages as a NestJS user writes them: a module with controller, service and DTOs, validation by
// pipe, messages as a list of JSON that MULTI appends to and trims.
import 'reflect-metadata';
import { ValidationPipe } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { AppModule } from './app.module';

async function bootstrap() {
  const app = await NestFactory.create(AppModule, { logger: false });
  app.useGlobalPipes(new ValidationPipe({ whitelist: true, forbidNonWhitelisted: true, transform: true }));
  await app.listen(Number(process.argv[2]), '127.0.0.1');
}
void bootstrap();
