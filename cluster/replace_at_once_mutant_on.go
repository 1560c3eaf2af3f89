//go:build mutant_replace_at_once

package cluster

// mutantReplaceAtOnce is a deliberate defect: a lost server is replaced without
// waiting for its silence. CI builds it in and requires the test to notice.
const mutantReplaceAtOnce = true
