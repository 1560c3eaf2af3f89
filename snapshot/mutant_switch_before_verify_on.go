//go:build mutant_switch_before_verify

package snapshot

// mutantSwitchBeforeVerify breaks the package on purpose: a test has to notice.
const mutantSwitchBeforeVerify = true
