//go:build mutant_writer_failure_ignored

package snapshot

// mutantWriterFailureIgnored breaks the package on purpose: a test has to notice.
const mutantWriterFailureIgnored = true
