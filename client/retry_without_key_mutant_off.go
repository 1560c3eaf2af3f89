//go:build !mutant_retry_without_key

package client

// mutantRetryWithoutKey, when built with the tag mutant_retry_without_key, sends a write
// without an idempotency key again after its answer was lost; a test has to notice.
const mutantRetryWithoutKey = false
