import { Body, Controller, Get, Param, ParseUUIDPipe, Post, Res } from '@nestjs/common';
import type { Response } from 'express';
import { CreateSessionDto } from './create-session.dto';
import { Session } from './session';
import { SessionsService } from './sessions.service';

@Controller('api/sessions')
export class SessionsController {
  constructor(private readonly sessions: SessionsService) {}

  @Get(':sessionId')
  findOne(@Param('sessionId', ParseUUIDPipe) sessionId: string): Promise<Session> {
    return this.sessions.findOne(sessionId);
  }

  @Post()
  async getOrCreate(@Body() dto: CreateSessionDto, @Res({ passthrough: true }) response: Response): Promise<Session> {
    const { created, session } = await this.sessions.getOrCreate(dto);
    response.status(created ? 201 : 200);
    return session;
  }
}
