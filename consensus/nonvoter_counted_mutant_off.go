//go:build !mutant_nonvoter_counted

package consensus

const mutantNonvoterCounted = false
