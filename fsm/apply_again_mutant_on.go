//go:build mutant_apply_again

package fsm

// mutantApplyAgain applies entries again that the data has already.
const mutantApplyAgain = true
