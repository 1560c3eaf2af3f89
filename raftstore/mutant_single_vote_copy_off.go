//go:build !mutant_single_vote_copy

package raftstore

// mutantSingleVoteCopy breaks the second copy of the votes on purpose in builds that must fail their tests.
const mutantSingleVoteCopy = false
