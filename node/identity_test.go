package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func openTestFolder(t *testing.T, dir string) *folder {
	t.Helper()
	f, err := openFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.close() })
	return f
}

func TestIdentityIsKept(t *testing.T) {
	f := openTestFolder(t, filepath.Join(t.TempDir(), "data"))
	a, err := f.identify("n1")
	if err != nil {
		t.Fatal(err)
	}
	b, err := f.identify("n1")
	if err != nil || a != b {
		t.Fatalf("%+v, then %+v: %v", a, b, err)
	}
	if _, err := f.identify("n2"); err == nil || !strings.Contains(err.Error(), `belongs to node "n1"`) {
		t.Fatalf("another name: %v", err)
	}
	raw, err := os.ReadFile(f.path(identityName))
	if err != nil {
		t.Fatal(err)
	}
	for _, damaged := range []string{
		"", "{", strings.Replace(string(raw), a.ServerID[:8], "00000000", 1),
		strings.Replace(string(raw), `"version": 1`, `"version": 9`, 1),
	} {
		if err := os.WriteFile(f.path(identityName), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if id, err := f.identify("n1"); err == nil {
			t.Errorf("a damaged identity was accepted: %+v", id)
		}
	}
}

func TestFolderIsLockedAndOurs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	openTestFolder(t, dir)
	if _, err := openFolder(dir); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Fatalf("a second time: %v", err)
	}
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "precious.txt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openFolder(foreign); err == nil || !strings.Contains(err.Error(), "not a Sett data folder") {
		t.Fatalf("a foreign folder: %v", err)
	}
	entries, err := os.ReadDir(foreign)
	if err != nil || len(entries) != 1 {
		t.Fatalf("the foreign folder was touched: %v, %v", entries, err)
	}
}

// TestReseedSurvivesCrashes stops a reseed after each of its steps: whatever the next
// start finds, the old log is never there under the old identity's or the new one's.
func TestReseedSurvivesCrashes(t *testing.T) {
	for _, step := range []string{"identity written", "log moved", "done"} {
		t.Run(step, func(t *testing.T) {
			f := openTestFolder(t, filepath.Join(t.TempDir(), "data"))
			old, err := f.identify("n1")
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []string{raftName, stateName} {
				if err := os.Mkdir(f.path(n), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if step == "done" {
				if _, err := f.reseed("n1", "cluster"); err != nil {
					t.Fatal(err)
				}
			} else {
				id := newIdentity("n1", "cluster")
				id.Reseeding = true
				if _, err := f.writeIdentity(id); err != nil {
					t.Fatal(err)
				}
				if step == "log moved" {
					if err := os.Rename(f.path(raftName), f.path(lostPrefix+"x")); err != nil {
						t.Fatal(err)
					}
				}
			}
			id, err := f.identify("n1")
			if err != nil || id.ServerID == old.ServerID || id.Rejoin != "cluster" || id.Reseeding {
				t.Fatalf("%+v: %v", id, err)
			}
			for _, n := range []string{raftName, stateName} {
				if _, err := os.Stat(f.path(n)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is still there: %v", n, err)
				}
			}
		})
	}
}

func TestRunningMarker(t *testing.T) {
	f := openTestFolder(t, filepath.Join(t.TempDir(), "data"))
	for _, c := range []struct {
		name             string
		prepare          func() error
		crashed, machine bool
	}{
		{"first start", func() error { return nil }, false, false},
		{"after a crash", func() error { return nil }, true, false},
		{"after a crash of the machine", func() error {
			return os.WriteFile(f.path(runningName), []byte(`{"boot_id":"another"}`), 0o600)
		}, true, true},
		{"a damaged marker", func() error { return os.WriteFile(f.path(runningName), []byte("{"), 0o600) }, true, true},
		{"after an orderly stop", f.unmarkRunning, false, false},
	} {
		if err := c.prepare(); err != nil {
			t.Fatal(err)
		}
		crashed, machine, err := f.lastRun()
		if err := f.markRunning(); err != nil {
			t.Fatal(err)
		}
		if err != nil || crashed != c.crashed || machine != c.machine {
			t.Errorf("%s: crashed %v, machine %v: %v", c.name, crashed, machine, err)
		}
	}
}
