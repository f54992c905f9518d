/** The heights of the rows of a long list, most of which were never rendered. A Fenwick tree: each call is O(log n). */
export class Heights {
  private readonly estimate: number;
  private heights: Float64Array;
  /** Partial sums of the differences between the heights and the estimate. */
  private sums: Float64Array;
  private count = 0;

  constructor(estimate: number) {
    this.estimate = estimate;
    this.heights = new Float64Array(1024);
    this.sums = new Float64Array(1025);
  }

  resize(count: number): void {
    this.count = count;
    if (count <= this.heights.length) return;
    const old = this.heights;
    let size = old.length;
    while (size < count) size *= 2;
    this.heights = new Float64Array(size);
    this.sums = new Float64Array(size + 1);
    old.forEach((height, index) => height && this.set(index, height));
  }

  set(index: number, height: number): void {
    const difference = height - (this.heights[index] || this.estimate);
    this.heights[index] = height;
    if (!difference) return;
    for (let i = index + 1; i < this.sums.length; i += i & -i) this.sums[i]! += difference;
  }

  /** The distance of the top of a row from the top of the list. */
  top(index: number): number {
    let sum = index * this.estimate;
    for (let i = index; i > 0; i -= i & -i) sum += this.sums[i]!;
    return sum;
  }

  get total(): number {
    return this.top(this.count);
  }

  /** The row at this distance from the top of the list. */
  at(distance: number): number {
    let index = 0;
    let top = 0;
    for (let step = this.heights.length; step > 0; step >>= 1) {
      const next = index + step;
      if (next > this.heights.length) continue;
      const nextTop = top + step * this.estimate + this.sums[next]!;
      if (nextTop <= distance) {
        index = next;
        top = nextTop;
      }
    }
    return Math.max(0, Math.min(index, this.count - 1));
  }
}
