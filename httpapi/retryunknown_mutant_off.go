//go:build !mutant_retry_unknown

package httpapi

// mutantRetryUnknown, when built with the tag mutant_retry_unknown, sends a forwarded
// write again after its answer was lost; a test has to notice.
const mutantRetryUnknown = false
