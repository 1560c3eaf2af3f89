//go:build !mutant_forget_doubt

package httpapi

// mutantForgetDoubt, when built with the tag mutant_forget_doubt, lets the last attempt
// of a write speak for an earlier one whose answer was lost; a test has to notice.
const mutantForgetDoubt = false
