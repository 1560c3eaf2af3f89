//go:build mutant_nonvoter_counted

package consensus

// A deliberately broken build: the tests must notice.
const mutantNonvoterCounted = true
