import { Injectable, PipeTransform } from '@nestjs/common';

@Injectable()
export class AsArrayPipe implements PipeTransform {
  transform(value: unknown): unknown[] {
    return Array.isArray(value) ? value : [value];
  }
}
