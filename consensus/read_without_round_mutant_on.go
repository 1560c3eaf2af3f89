//go:build mutant_read_without_round

package consensus

// A deliberately broken build: the tests must notice.
const mutantReadWithoutRound = true
