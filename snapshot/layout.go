package snapshot

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	currentName      = "CURRENT"
	dbName           = "db"
	tmpSuffix        = ".tmp"
	generationPrefix = "gen-"
	// generationIDBytes is the number of random bytes in a generation's name.
	generationIDBytes = 8
	pointerMagic      = "SETTCURRENT"
	pointerVersion    = "1"
	dirMode           = 0o700
	fileMode          = 0o600
)

func newGenerationName() string {
	var id [generationIDBytes]byte
	// crypto/rand.Read never fails: it ends the program instead.
	_, _ = rand.Read(id[:])
	return generationPrefix + hex.EncodeToString(id[:])
}

func isGenerationName(name string) bool {
	id, ok := strings.CutPrefix(name, generationPrefix)
	if !ok || len(id) != 2*generationIDBytes {
		return false
	}
	_, err := hex.DecodeString(id)
	return err == nil && id == strings.ToLower(id)
}

// encodePointer returns the content of CURRENT: one line of magic, version, name
// and checksum, so that people can read it.
func encodePointer(name string) []byte {
	line := pointerMagic + " " + pointerVersion + " " + name
	return fmt.Appendf(nil, "%s %08x\n", line, crc32.Checksum([]byte(line), castagnoli))
}

func decodePointer(b []byte) (name string, err error) {
	fields := strings.Split(string(b), " ")
	if len(fields) != 4 || fields[0] != pointerMagic {
		return "", errors.New("not a pointer file")
	}
	if fields[1] != pointerVersion {
		return "", fmt.Errorf("pointer format %q is not supported; this version of sett reads format %s", fields[1], pointerVersion)
	}
	if name = fields[2]; !isGenerationName(name) {
		return "", fmt.Errorf("bad generation name %q", name)
	}
	if !bytes.Equal(b, encodePointer(name)) {
		return "", errors.New("pointer checksum mismatch")
	}
	return name, nil
}

// readCurrent returns the name of the current generation; found is false in a
// folder that has none yet.
func readCurrent(dir string) (name string, found bool, err error) {
	path := filepath.Join(dir, currentName)
	b, err := readBounded(path, 256)
	if errors.Is(err, os.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("read pointer file: %w", err)
	}
	if name, err = decodePointer(b); err != nil {
		e := corrupt("%s is damaged; wipe the data folder so that the server rejoins as a new one", path)
		e.Err = err
		return "", false, e
	}
	return name, true, nil
}

func writeCurrent(dir, name string) error {
	if err := replaceFile(filepath.Join(dir, currentName), encodePointer(name)); err != nil {
		return fmt.Errorf("switch to %s: %w", name, err)
	}
	return nil
}

// replaceFile makes data the content of path: whoever opens path, after a crash
// too, sees all of the old content or all of the new.
func replaceFile(path string, data []byte) error {
	tmp := path + tmpSuffix
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error { return syncPath(dir) }

// syncPath does fsync on a file or a folder.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// syncTree makes every file and folder below dir durable, and dir itself.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncPath(path)
	})
}

// readBounded reads a whole file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, corrupt("%s is longer than %d bytes", path, limit)
	}
	return b, nil
}

// createGeneration makes the folder of a generation, durably, without its database.
func createGeneration(dir, name string) (path string, err error) {
	path = filepath.Join(dir, name)
	if err := os.Mkdir(path, dirMode); err != nil {
		return "", fmt.Errorf("create generation: %w", err)
	}
	if err := syncDir(dir); err != nil {
		return "", fmt.Errorf("create generation: %w", err)
	}
	return path, nil
}

// generations returns the names of all generation folders in dir.
func generations(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && isGenerationName(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// hasDatabase says whether the generation in dir has files of a database.
func hasDatabase(dir string) (bool, error) {
	entries, err := os.ReadDir(filepath.Join(dir, dbName))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return len(entries) > 0, err
}
