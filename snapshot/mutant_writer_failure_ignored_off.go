//go:build !mutant_writer_failure_ignored

package snapshot

const mutantWriterFailureIgnored = false
