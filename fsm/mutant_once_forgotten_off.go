//go:build !mutant_once_forgotten

package fsm

// mutantOnceForgotten leaves outcomes out of the revision that they belong to.
const mutantOnceForgotten = false
