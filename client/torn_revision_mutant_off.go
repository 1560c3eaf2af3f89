//go:build !mutant_torn_revision

package client

// mutantTornRevision, when built with the tag mutant_torn_revision, tells events before their
// revision is whole; a test has to notice.
const mutantTornRevision = false
