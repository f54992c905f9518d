import {
  Body, Controller, DefaultValuePipe, Get, Param, ParseArrayPipe, ParseIntPipe, ParseUUIDPipe, Post, Query, Req, Res,
} from '@nestjs/common';
import type { Request, Response } from 'express';
import { AsArrayPipe } from './as-array.pipe';
import { CreateMessageDto } from './create-message.dto';
import { CreateSessionDto } from './create-session.dto';
import { Message } from './message';
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

  @Get(':sessionId/messages')
  listMessages(
    @Param('sessionId', ParseUUIDPipe) sessionId: string,
    @Query('limit', new DefaultValuePipe(50), ParseIntPipe) limit: number,
  ): Promise<Message[]> {
    return this.sessions.listMessages(sessionId, limit);
  }

  // One message or an array of them; the response has the same form.
  @Post(':sessionId/messages')
  async appendMessages(
    @Param('sessionId', ParseUUIDPipe) sessionId: string,
    @Body(new AsArrayPipe(), new ParseArrayPipe({ items: CreateMessageDto })) messages: CreateMessageDto[],
    @Req() request: Request,
  ): Promise<Message | Message[]> {
    const stored = await this.sessions.appendMessages(sessionId, messages);
    return Array.isArray(request.body) ? stored : stored[0];
  }
}
