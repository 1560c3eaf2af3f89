package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	badger "github.com/dgraph-io/badger/v2"
)

// TestFlippedBytes: whatever byte of whatever file is damaged, and however the files are
// written, an open reports ErrCorrupt or succeeds; no other error comes out, and no
// panic. (How much of the newest, unsynced writes must be there is the state machine's
// to check.)
func TestFlippedBytes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for _, c := range []struct {
		name   string
		change func(*Config)
	}{
		{"plain", func(*Config) {}},
		{"snappy", func(c *Config) { c.Compression = "snappy" }},
		{"zstd", func(c *Config) { c.Compression = "zstd" }},
		{"encrypted", func(c *Config) { c.EncryptionKey = []byte("0123456789abcdef") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := freshDir(t)
			e, err := Open(testConfig(t, dir, c.change))
			must(t, err)
			h := newHistory()
			grow(t, e, h, 300, 20)
			must(t, e.Close())
			e, err = Open(testConfig(t, dir, c.change))
			must(t, err)
			must(t, e.Commit(10_000, []Entry{{Key: []byte("dlast"), Value: []byte("v")}}, Entry{Key: []byte("e")}))
			must(t, e.Flush())
			killed := copyDir(t, dir)
			must(t, e.Close())

			for _, from := range []struct{ name, dir string }{{"killed", killed}, {"closed", dir}} {
				for _, pattern := range []string{"*.sst", "*.vlog", "MANIFEST", "KEYREGISTRY"} {
					files, err := filepath.Glob(filepath.Join(from.dir, pattern))
					must(t, err)
					if len(files) == 0 {
						t.Fatalf("no %s", pattern)
					}
					file := files[rnd.IntN(len(files))]
					b, err := os.ReadFile(file)
					must(t, err)
					size := len(b)
					for _, at := range []int{2, size / 2, size - 1, size - 5, size - 20, rnd.IntN(size), rnd.IntN(size)} {
						if at < 0 || at >= size {
							continue
						}
						mask := byte(1 + rnd.IntN(255))
						what := fmt.Sprintf("%s, %s, byte %d of %d ^ %#x", from.name, filepath.Base(file), at, size, mask)
						damaged := copyDir(t, from.dir)
						b[at] ^= mask
						must(t, os.WriteFile(filepath.Join(damaged, filepath.Base(file)), b, 0o600))
						b[at] ^= mask
						openDamaged(t, testConfig(t, damaged, c.change), what)
						must(t, os.RemoveAll(damaged))
					}
				}
			}
		})
	}
}

func openDamaged(t *testing.T, cfg Config, what string) {
	t.Helper()
	e, err := Open(cfg)
	if err != nil {
		// The wrong key and a registry that is damaged at its beginning look alike.
		sameAsWrongKey := len(cfg.EncryptionKey) > 0 && errors.Is(err, badger.ErrEncryptionKeyMismatch)
		if !errors.Is(err, ErrCorrupt) && !sameAsWrongKey {
			t.Errorf("%s: %v", what, err)
		}
		return
	}
	if err := e.Close(); err != nil {
		t.Errorf("%s: close: %v", what, err)
	}
}

// TestWrongKeyIsNoDamage: a mistyped setting must not make a node throw its data away.
func TestWrongKeyIsNoDamage(t *testing.T) {
	encrypted := func(c *Config) { c.EncryptionKey = []byte("0123456789abcdef") }
	dir := freshDir(t)
	e, err := Open(testConfig(t, dir, encrypted))
	must(t, err)
	h := newHistory()
	grow(t, e, h, 50, 10)
	must(t, e.Close())
	for name, change := range map[string]func(*Config){
		"another": func(c *Config) { c.EncryptionKey = []byte("fedcba9876543210") },
		"none":    func(*Config) {},
	} {
		if _, err := Open(testConfig(t, copyDir(t, dir), change)); err == nil || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s key: %v", name, err)
		}
	}
	again, err := Open(testConfig(t, dir, encrypted))
	must(t, err)
	must(t, again.Close())
}
