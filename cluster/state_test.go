package cluster

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/settkv/sett/kv"
)

func testDurable() *durable {
	return &durable{
		ClusterID: "1b4e28ba-2fa1-41d2-883f-0016d3cca427", Founders: []founder{testFounder("a"), testFounder("b")},
		Started: true, Seeds: []string{"a:7946"}, Removed: true,
	}
}

func TestStateSurvives(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenState(dir)
	if err != nil || s.ClusterID() != "" || s.Removed() || s.Started() {
		t.Fatalf("an empty folder: %+v, %v", s.load(), err)
	}
	if _, err := os.Stat(filepath.Join(dir, stateFile)); err == nil {
		t.Error("reading wrote a file")
	}
	want := testDurable()
	if err := s.update(func(d *durable) error { *d = *want; return nil }); err != nil {
		t.Fatal(err)
	}
	again, err := OpenState(dir)
	if err != nil || !reflect.DeepEqual(again.load(), want) {
		t.Fatalf("read back %+v, %v", again.load(), err)
	}
	// A refused change leaves everything.
	no := errors.New("no")
	if err := again.update(func(d *durable) error { d.ClusterID = "other"; return no }); !errors.Is(err, no) || again.ClusterID() != want.ClusterID {
		t.Errorf("refused: %v, %s", err, again.ClusterID())
	}
	if err := again.SetClusterID("other"); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("another cluster id: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// TestStateWriteFails: what can't be written is not believed.
func TestStateWriteFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := OpenState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := s.SetClusterID("X"); err == nil || s.ClusterID() != "" {
		t.Errorf("%v, cluster id %q", err, s.ClusterID())
	}
}

// TestStateGolden pins the format: version 1 must stay readable for ever.
func TestStateGolden(t *testing.T) {
	golden, err := os.ReadFile(filepath.Join("testdata", "cluster-v1.json"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := decodeState(golden)
	if err != nil || !reflect.DeepEqual(d, testDurable()) {
		t.Errorf("decoded %+v, %v", d, err)
	}
	if got := encodeState(testDurable()); !bytes.Equal(got, golden) {
		t.Errorf("encoded\n%swant\n%s", got, golden)
	}
}

// TestStateDamage: no damaged byte goes unnoticed.
func TestStateDamage(t *testing.T) {
	dir := t.TempDir()
	good := encodeState(testDurable())
	path := filepath.Join(dir, stateFile)
	for i := range len(good) - 1 { // the last is a newline
		for _, bad := range [][]byte{good[:i], append(append(bytes.Clone(good[:i]), good[i]^1), good[i+1:]...)} {
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if s, err := OpenState(dir); !errors.Is(err, kv.ErrCorruption) {
				t.Fatalf("byte %d damaged: %v, %+v", i, err, s)
			}
		}
	}
	for name, raw := range map[string]string{
		"another version":   strings.Replace(string(good), `"version":1`, `"version":2`, 1),
		"trailing":          string(good) + "{}",
		"unknown field":     strings.Replace(string(good), `"version":1`, `"version":1,"x":1`, 1),
		"promise and id":    string(encodeState(&durable{ClusterID: "X", Promise: &promise{Proposer: "a", ClusterID: "Y", Founders: []founder{{}}}})),
		"incomplete":        string(encodeState(&durable{Promise: &promise{}})),
		"far too long":      strings.Repeat(" ", maxStateBytes+1),
		"something else":    `{"magic":"x","version":1,"sha256":"","body":{}}`,
		"nothing, in a way": "",
	} {
		if d, err := decodeState([]byte(raw)); err == nil {
			t.Errorf("%s: accepted as %+v", name, d)
		}
	}
}

// FuzzState tries files, and bodies under a checksum that is right.
func FuzzState(f *testing.F) {
	f.Add(encodeState(testDurable()))
	f.Add(encodeState(&durable{Promise: &promise{Proposer: "a", ClusterID: "X", Founders: []founder{testFounder("a")}}}))
	f.Add([]byte(`{"cluster_id":"X","founders":[],"started":true}`))
	f.Add([]byte(`{"promise":{"proposer":"a","cluster_id":"X","founders":[{"id":"a"}]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		sum := sha256.Sum256(raw)
		for _, file := range [][]byte{raw, fmt.Appendf(nil, `{"magic":%q,"version":1,"sha256":"%x","body":%s}`, stateMagic, sum, raw)} {
			d, err := decodeState(file)
			if err != nil {
				continue
			}
			good := encodeState(d)
			again, err := decodeState(good)
			if err != nil || !bytes.Equal(encodeState(again), good) {
				t.Errorf("%s became %+v, %v", good, again, err)
			}
		}
	})
}

func testMeta() meta {
	return meta{
		Name: "n1", ClusterID: "1b4e28ba-2fa1-41d2-883f-0016d3cca427", RaftAddr: "10.0.0.1:7000", HTTPAddr: "10.0.0.1:8080",
		Version: "1.2.3", Expect: 3, Nonvoter: true, Removed: true,
	}
}

func TestMetaRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := rapid.StringN(0, 30, 60)
		m := meta{
			Name: rapid.StringN(1, 30, 60).Draw(rt, "name"), ClusterID: s.Draw(rt, "cluster"), RaftAddr: s.Draw(rt, "raft"), HTTPAddr: s.Draw(rt, "http"),
			Version: s.Draw(rt, "version"), Expect: rapid.IntRange(0, maxFounders).Draw(rt, "expect"), Nonvoter: rapid.Bool().Draw(rt, "nonvoter"),
			Promised: rapid.Bool().Draw(rt, "promised"), Removed: rapid.Bool().Draw(rt, "removed"), Started: rapid.Bool().Draw(rt, "started"),
		}
		b, err := m.encode()
		if err != nil {
			rt.Fatal(err)
		}
		if got, err := decodeMeta(b); err != nil || got != m {
			rt.Fatalf("%+v became %+v, %v", m, got, err)
		}
		// A later version may add fields.
		if got, err := decodeMeta(append(b, 200, 3, 'n', 'e', 'w')); err != nil || got != m {
			rt.Fatalf("with an unknown field: %+v, %v", got, err)
		}
	})
}

func TestMetaLimits(t *testing.T) {
	m := testMeta()
	m.Name = strings.Repeat("x", maxMetaBytes)
	if _, err := m.encode(); err == nil || !strings.Contains(err.Error(), "shorten") {
		t.Errorf("too long a name: %v", err)
	}
	good, err := testMeta().encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "other version": append([]byte{9}, good[1:]...), "no name": {metaVersion}, "cut": good[:len(good)-1],
		"length beyond": {metaVersion, tagName, 0xff, 0xff, 0x03, 'a'}, "twice": {metaVersion, tagName, 1, 'a', tagName, 1, 'b'},
		"wide flags": {metaVersion, tagName, 1, 'a', tagFlags, 2, 0, 0}, "huge": bytes.Repeat([]byte{metaVersion}, maxMetaBytes+1),
	} {
		if m, err := decodeMeta(b); err == nil {
			t.Errorf("%s: accepted as %+v", name, m)
		}
	}
}

// FuzzGossipMeta: whatever comes from the network is refused or understood.
func FuzzGossipMeta(f *testing.F) {
	b, err := testMeta().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{metaVersion, tagName, 1, 'a', tagExpect, 1, 3})
	f.Add([]byte{metaVersion, tagName, 0x80})
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := decodeMeta(raw)
		if err != nil {
			return
		}
		if m.Name == "" || len(raw) > maxMetaBytes {
			t.Errorf("accepted %+v", m)
		}
		b, err := m.encode()
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		if again, err := decodeMeta(b); err != nil || again != m {
			t.Errorf("%+v became %+v, %v", m, again, err)
		}
	})
}
