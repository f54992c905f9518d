#!lua
-- ready: check whether Redis would accept a write.
--
-- Redis rejects a script without the flag `no-writes` before it starts whenever it would reject a write: on a read-only
-- replica, with too few replicas, after a failed save, out of memory. So this script detects that without writing.
--
-- KEYS    none
-- ARGV    none
-- Returns {`ready`}
-- O(1).
return {'ready'}
