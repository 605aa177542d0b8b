# One machine that can be thrown away: what it must not forget is in S3, in the registry and on the data disk.

data "aws_ami" "debian" {
  count       = var.ami == null ? 1 : 0
  owners      = ["136693071363"] # Debian
  most_recent = true

  filter {
    name   = "name"
    values = ["debian-12-amd64-*"]
  }
}

locals {
  agent = {
    ssm        = "https://s3.${var.region}.amazonaws.com/amazon-ssm-${var.region}/${var.agents.ssm.version}/debian_amd64/amazon-ssm-agent.deb"
    cloudwatch = "https://amazoncloudwatch-agent-${var.region}.s3.${var.region}.amazonaws.com/debian/amd64/${var.agents.cloudwatch.version}/amazon-cloudwatch-agent.deb"
  }

  # What bootstrap.sh reads.
  bootstrap = {
    NAME              = var.name
    AWS_REGION        = var.region
    RELEASE_URL       = var.release.url
    RELEASE_SHA256    = var.release.sha256
    MINIKUBE_VERSION  = var.minikube == null ? "" : var.minikube.version
    MINIKUBE_SHA256   = var.minikube == null ? "" : var.minikube.sha256
    SSM_URL           = local.agent.ssm
    SSM_SHA256        = var.agents.ssm.sha256 == null ? "" : var.agents.ssm.sha256
    CLOUDWATCH_URL    = local.agent.cloudwatch
    CLOUDWATCH_SHA256 = var.agents.cloudwatch.sha256 == null ? "" : var.agents.cloudwatch.sha256
    LOG_GROUP         = aws_cloudwatch_log_group.machine.name
    DATA_VOLUME       = aws_ebs_volume.data.id
    MLFLOW            = var.mlflow ? "yes" : ""
    API_LISTEN        = "${var.api_host}:${var.api_port}"
    NODE_PORT         = tostring(var.node_port)
  }

  # What health-predict reads: defaults of this machine, then the user's.
  settings = merge({
    HEALTH_PREDICT_STORAGE             = "/srv/health-predict/storage"
    HEALTH_PREDICT_STORAGE__REMOTE     = "s3://${var.bucket}/storage"
    HEALTH_PREDICT_STORAGE__ENCRYPTION = "aws:kms"
    HEALTH_PREDICT_STORAGE__KMS_KEY    = var.key_arn
    HEALTH_PREDICT_RUN__SCHEDULE       = var.schedule
    HEALTH_PREDICT_DEPLOY__REGISTRY    = var.registry
    HEALTH_PREDICT_DEPLOY__IMAGE       = var.repository
    AWS_DEFAULT_REGION                 = var.region
    }, var.minikube == null ? {} : {
    HEALTH_PREDICT_DEPLOY__MINIKUBE = "true"
    HEALTH_PREDICT_DEPLOY__CONTEXT  = "minikube"
    MINIKUBE_DRIVER                 = "docker"
  }, var.settings)

  user_data = templatefile("${path.module}/user_data.yaml.tftpl", {
    bootstrap = join("\n", [for k, v in local.bootstrap : "${k}='${v}'"])
    settings  = join("\n", [for k, v in local.settings : "${k}='${v}'"])
    script    = base64gzip(file("${path.module}/bootstrap.sh"))
  })
}

resource "aws_cloudwatch_log_group" "machine" {
  name              = "/${var.name}/machine"
  retention_in_days = var.retention
  kms_key_id        = var.key_arn
}

resource "aws_ebs_volume" "data" {
  availability_zone = var.zone
  type              = "gp3"
  size              = var.data_gb
  encrypted         = true
  kms_key_id        = var.key_arn
  final_snapshot    = var.protect
  tags              = { Name = "${var.name}-data" }
}

resource "aws_instance" "this" {
  ami                         = var.ami == null ? data.aws_ami.debian[0].id : var.ami
  instance_type               = var.instance_type
  subnet_id                   = var.subnet_id
  vpc_security_group_ids      = [var.security_group]
  iam_instance_profile        = var.instance_profile
  ebs_optimized               = true
  monitoring                  = true
  disable_api_termination     = var.protect
  user_data                   = local.user_data
  user_data_replace_on_change = true
  tags                        = { Name = var.name }

  # Tokens only, and one hop: containers can't take the machine's role. Pods read the storage from a folder that Minikube mounts.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    volume_type = "gp3"
    volume_size = var.root_gb
    encrypted   = true
    kms_key_id  = var.key_arn
    tags        = { Name = "${var.name}-root" }
  }

  lifecycle {
    # A newer Debian image replaces the machine when you say so (-replace), not on any apply.
    ignore_changes = [ami]

    precondition {
      condition     = length(local.user_data) <= 16384
      error_message = "user-data is ${length(local.user_data)} bytes; EC2 takes 16384. Put long settings into SSM parameters."
    }
  }
}

resource "aws_volume_attachment" "data" {
  device_name                    = "/dev/sdf"
  volume_id                      = aws_ebs_volume.data.id
  instance_id                    = aws_instance.this.id
  stop_instance_before_detaching = true
}

resource "aws_sns_topic" "alarms" {
  count             = var.alarm_email == "" ? 0 : 1
  name              = "${var.name}-alarms"
  kms_master_key_id = var.key_arn
}

resource "aws_sns_topic_subscription" "email" {
  count     = var.alarm_email == "" ? 0 : 1
  topic_arn = aws_sns_topic.alarms[0].arn
  protocol  = "email"
  endpoint  = var.alarm_email
}

locals {
  # AWS's host fails: the machine moves to another one, with its disks and addresses. The machine itself hangs: it is rebooted, and starts everything again.
  status = {
    host    = { metric = "System", minutes = 2, action = "recover", said = "The host under the machine fails; it is moved to another one." }
    machine = { metric = "Instance", minutes = 3, action = "reboot", said = "The machine does not answer; it is rebooted." }
  }
}

resource "aws_cloudwatch_metric_alarm" "status" {
  for_each            = local.status
  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.said
  namespace           = "AWS/EC2"
  metric_name         = "StatusCheckFailed_${each.value.metric}"
  dimensions          = { InstanceId = aws_instance.this.id }
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = each.value.minutes
  threshold           = 1
  comparison_operator = "GreaterThanOrEqualToThreshold"
  alarm_actions       = concat(["arn:${var.aws}:automate:${var.region}:ec2:${each.value.action}"], aws_sns_topic.alarms[*].arn)
}

# Nothing was logged for days: no run began. The dead man's switch that needs no outside service.
resource "aws_cloudwatch_metric_alarm" "silence" {
  alarm_name          = "${var.name}-silence"
  alarm_description   = "The machine logged nothing for ${var.silent_days} day(s): runs don't begin."
  namespace           = "AWS/Logs"
  metric_name         = "IncomingLogEvents"
  dimensions          = { LogGroupName = aws_cloudwatch_log_group.machine.name }
  statistic           = "Sum"
  period              = 86400
  evaluation_periods  = var.silent_days
  threshold           = 1
  comparison_operator = "LessThanThreshold"
  treat_missing_data  = "breaching"
  alarm_actions       = aws_sns_topic.alarms[*].arn
}
