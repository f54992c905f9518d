import { Allow, IsIn, IsObject, IsOptional, IsString, Length } from 'class-validator';

export class CreateMessageDto {
  @IsOptional()
  @IsString()
  @Length(1, 128)
  messageId?: string;

  @IsIn(['user', 'assistant', 'system', 'tool'])
  role: string;

  @Allow()
  content: unknown;

  @IsOptional()
  @IsObject()
  metadata: Record<string, unknown> = {};
}
