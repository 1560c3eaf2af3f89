//go:build mutant_retry_unknown

package httpapi

const mutantRetryUnknown = true
