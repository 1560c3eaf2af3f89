// Package faulttest holds the tests that do to real `sett` processes what machines
// do to them: kill -9 of one node, of the leader, of all three at once, again right
// after a restart began, and the loss of a data folder; all under load.
//
// The tests build the binary once, run three nodes of it on loopback, and know
// nothing of them but the command line, the HTTP API and the metrics. Whether a
// promise was kept is judged by internal/blackbox.
//
// Plain `go test` does a few kills. The environment asks for more:
//
//	SETT_FAULT=ci        the length that CI runs: 50 kills, 100 000 keys
//	SETT_FAULT_KILLS=N   so many kills
//	SETT_FAULT_KEYS=N    so many keys before the timed restart
//	SETT_FAULT_SEED=N    the same plan again; the seed of a run is printed
//	SETT_FAULT_TAGS=T    build tags of the binary, to see a broken build caught
//	SETT_FAULT_BINARY=P  test this binary instead of one built from the sources
//
// A plan's order, victims and phases follow from the seed; the instants themselves
// are those of the machine.
package faulttest
