use super::*;

#[test]
fn each_diagnosis_has_its_remedy() {
    for diagnosis in Diagnosis::ALL {
        assert!(diagnosis.row().is_some() && !diagnosis.remedy().is_empty(), "{diagnosis}");
    }
}

#[test]
fn the_words_of_servers_are_understood() {
    for (words, is) in [
        ("unknown command 'MGET', with args beginning with: 'moved' 'oom' ", Is::UnknownCommand),
        (
            "Unknown Redis command called from script script: 8d, on @user_script:1.",
            Is::UnknownCommand,
        ),
        ("NOPERM this user has no permissions to run the 'scan' command", Is::Acl),
        ("The user executing the script can't run this command or subcommand script: 9a", Is::Acl),
        ("MOVED 15495 127.0.0.1:7001", Is::ClusterNode),
        ("CLUSTERDOWN Hash slot not served", Is::ClusterDown),
        ("This instance has cluster support disabled", Is::NoCluster),
        ("OOM command not allowed when used memory > 'maxmemory'.", Is::Memory),
        ("MISCONF Redis is configured to save RDB snapshots", Is::Disk),
        ("NOREPLICAS Not enough good replicas to write.", Is::Replicas),
        ("ERR max number of clients reached", Is::MaxClients),
        ("DENIED Redis is running in protected mode because ...", Is::ProtectedMode),
        ("NOAUTH Authentication required.", Is::NoLogin),
        ("WRONGPASS invalid username-password pair or user is disabled.", Is::WrongLogin),
        ("ERR AUTH <password> called without any password configured for", Is::NoPassword),
        ("ERR Client sent AUTH, but no password is set", Is::NoPassword),
        ("DB index is out of range", Is::NoDatabase),
        ("LOADING Redis is loading the dataset in memory", Is::Loading),
        ("MASTERDOWN Link with MASTER is down", Is::MasterDown),
        ("READONLY You can't write against a read only replica.", Is::Replica),
    ] {
        assert_eq!(Diagnosis::of(words), Some(is), "{words}");
    }
    let foreign = "WRONGTYPE Operation against a key holding the wrong kind of value";
    assert_eq!(Diagnosis::of(foreign), None, "the value of another program is no fault of Redis");
}
