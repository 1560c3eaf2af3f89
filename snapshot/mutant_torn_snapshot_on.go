//go:build mutant_torn_snapshot

package snapshot

// mutantTornSnapshot breaks the package on purpose: a test has to notice.
const mutantTornSnapshot = true
