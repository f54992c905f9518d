#!lua
-- ready: would a write be accepted?
--
-- A script without the flag `no-writes` is refused before it starts wherever a write would be: on a read-only replica,
-- with too few replicas, after a failed save, out of memory. So this one needs to write nothing to find out.
--
-- KEYS    none
-- ARGV    none
-- Returns {`ready`}
-- O(1).
return {'ready'}
