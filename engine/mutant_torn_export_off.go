//go:build !mutant_torn_export

package engine

// mutantTornExport breaks Invariant 16 on purpose in builds that must fail their tests.
const mutantTornExport = false
