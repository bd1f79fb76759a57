// node:test, where what hangs is a failure: Node 18 has no --test-timeout.
import { after, test as base } from "node:test";

const MOST = 300_000; // ms of one test, on a machine that is busy with others

export function test(name, ...rest) {
  const body = rest.pop();
  return base(name, { timeout: MOST, ...rest[0] }, body);
}

// A test that was given up may have left open what keeps the process alive.
after(() => setTimeout(() => process.exit(1), 30_000).unref());
