//go:build !mutant_torn_snapshot

package snapshot

const mutantTornSnapshot = false
