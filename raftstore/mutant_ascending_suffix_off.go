//go:build !mutant_ascending_suffix

package raftstore

// mutantAscendingSuffix breaks Invariant 4 on purpose in builds that must fail their tests.
const mutantAscendingSuffix = false
