//go:build !mutant_apply_again

package fsm

const mutantApplyAgain = false
