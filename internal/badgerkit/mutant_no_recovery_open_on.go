//go:build mutant_no_recovery_open

package badgerkit

// mutantNoRecoveryOpen breaks Invariant B1 on purpose in builds that must fail their tests.
const mutantNoRecoveryOpen = true
