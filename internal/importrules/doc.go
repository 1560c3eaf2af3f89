// Package importrules holds the test that keeps the walls between packages: which
// of our packages may import which, through which one door each third-party
// library comes in, and which parts of the standard library have no place here.
//
// The tables are in rules_test.go. A new package needs a row there, a new library
// a door, and moving a wall an ADR that says why. Files with tests of a package
// obey the same walls as the package, but for the exceptions that are listed.
package importrules
