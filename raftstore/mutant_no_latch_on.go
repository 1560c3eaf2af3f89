//go:build mutant_no_latch

package raftstore

// mutantNoLatch breaks Invariant 7 on purpose in builds that must fail their tests.
const mutantNoLatch = true
