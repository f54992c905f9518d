import { IsObject, IsOptional, IsString, Length } from 'class-validator';

export class CreateSessionDto {
  @IsString()
  @Length(1, 128)
  businessId: string;

  @IsString()
  @Length(1, 128)
  userId: string;

  @IsOptional()
  @IsString()
  @Length(1, 128)
  locationId: string = 'L0100001';

  @IsOptional()
  @IsString()
  @Length(1, 128)
  sessionType: string = 'general';

  @IsOptional()
  @IsObject()
  metadata: Record<string, unknown> = {};
}
