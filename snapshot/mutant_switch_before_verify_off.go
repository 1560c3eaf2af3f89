//go:build !mutant_switch_before_verify

package snapshot

const mutantSwitchBeforeVerify = false
