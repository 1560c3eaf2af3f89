//go:build !mutant_forget_promise

package cluster

// mutantForgetPromise is a deliberate defect: a promise is forgotten when another
// proposer asks. CI builds it in and requires the formation simulation to notice.
const mutantForgetPromise = false
