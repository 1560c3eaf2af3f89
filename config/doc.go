// Package config is the one table of a node's settings and everything made from it:
// command-line flags, environment variables, YAML keys, defaults, validation, the
// provenance that `sett serve --print-config` shows, and docs/configuration.md.
//
// A setting has one name in three places: raft-addr is --raft-addr, SETT_RAFT_ADDR
// and raft-addr in the file; badger.value_threshold is --badger-value-threshold,
// SETT_BADGER_VALUE_THRESHOLD and badger: {value_threshold: …}. First wins: flag,
// environment, file, default. Every layer is checked, also where a higher one wins:
// an unknown name or a bad value anywhere is an error that names it and its source.
//
// The package decides what a valid configuration is; it opens no socket and no
// database, and it changes nothing after Load. node translates a Config into the
// configurations of the packages below it. It is the only importer of YAML and, for
// settings, of flags.
package config
