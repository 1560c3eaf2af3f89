//go:build mutant_torn_revision

package client

const mutantTornRevision = true
