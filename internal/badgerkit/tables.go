package badgerkit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrCorrupt is matched by every error that says that the files of a database are damaged or not what its
// manifest names. The database must not be opened: opening it would delete what is left as evidence, and it
// lacks data. The node is rebuilt from its peers or from a backup.
var ErrCorrupt = errors.New("database files are damaged")

// lockName is the advisory file with the process id that Badger writes when it opens a folder and
// removes as the last step of a close.
const lockName = "LOCK"

// WasCleanClose says whether the database in dir was closed in order, or never opened: Badger's pid file
// is absent. It is only meaningful before the next open, a recovery open included.
func WasCleanClose(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, lockName))
	return errors.Is(err, os.ErrNotExist)
}

// CheckTables compares the table files in dir with the manifest, without opening the database
// (Invariant B2). A table that the manifest names and that is not on disk is always corruption, and so
// are tables or value logs without any manifest. A table on disk that the manifest does not name is
// ordinary after a crash (its flush or compaction was cut off; the next open deletes it), but after a
// clean close it means that a compaction lost its output while its input was deleted.
//
// It must run before any open of dir, since opening deletes unnamed tables. cleanClose is the answer of
// WasCleanClose. The error matches ErrCorrupt, or is an I/O error; nil for a missing or empty folder.
func CheckTables(dir string, cleanClose bool) error {
	onDisk, vlogs, err := tableFiles(dir)
	if err != nil {
		return fmt.Errorf("check tables: %w", err)
	}
	manifest, err := readManifest(dir)
	if errors.Is(err, os.ErrNotExist) {
		// Badger makes its manifest durable before any other file, so it cannot be the one that a crash
		// left out. Opening now would start an empty database over the remains.
		if len(onDisk) > 0 || vlogs > 0 {
			return fmt.Errorf("check tables: %w: %s holds %d tables and %d value logs but no manifest",
				ErrCorrupt, dir, len(onDisk), vlogs)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("check tables: %w", err)
	}

	var missing, unnamed []uint64
	for id := range manifest.Tables {
		if !onDisk[id] {
			missing = append(missing, id)
		}
	}
	for id := range onDisk {
		if _, ok := manifest.Tables[id]; !ok {
			unnamed = append(unnamed, id)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return fmt.Errorf("check tables: %w: %d tables of the manifest are not in %s: %s",
			ErrCorrupt, len(missing), dir, idList(missing))
	}
	if cleanClose && len(unnamed) > 0 {
		slices.Sort(unnamed)
		return fmt.Errorf("check tables: %w: %d tables in %s are not in the manifest although it was closed cleanly: %s",
			ErrCorrupt, len(unnamed), dir, idList(unnamed))
	}
	return nil
}

// tableFiles lists the ids of the table files in dir and counts its value logs.
func tableFiles(dir string) (ids map[uint64]bool, vlogs int, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	ids = make(map[uint64]bool)
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".vlog":
			vlogs++
		case ".sst":
			id, err := strconv.ParseUint(strings.TrimSuffix(e.Name(), ".sst"), 10, 64)
			if err != nil {
				continue // not a name that Badger makes; it ignores it too
			}
			ids[id] = true
		}
	}
	return ids, vlogs, nil
}

// idList prints the first few of ids.
func idList(ids []uint64) string {
	const most = 8
	if len(ids) <= most {
		return fmt.Sprint(ids)
	}
	return fmt.Sprint(ids[:most]) + "…"
}
