//go:build !mutant_read_without_round

package consensus

const mutantReadWithoutRound = false
